// Uses a portal with @skynetlabs/skynet-nodejs: node check.js PORTAL_URL API_KEY FOLDER
// FOLDER is an empty one for files. Prints a line for each step; the first that fails ends it.
"use strict";

const assert = require("assert");
const crypto = require("crypto");
const fs = require("fs");
const path = require("path");

const { step, run } = require("../steps.cjs");

const { SkynetClient, genKeyPairFromSeed } = require("@skynetlabs/skynet-nodejs");

const [portal, key, folder] = process.argv.slice(2);
const client = new SkynetClient(portal, { skynetApiKey: key });
const sha256 = (bytes) => crypto.createHash("sha256").update(bytes).digest("hex");
const inFolder = (name) => path.join(folder, name);

async function main() {
  const text = `written at ${Date.now()}`;
  const skylink = await step("upload data", () => client.uploadData(text, "note.txt"));
  assert.match(skylink, /^sia:\/\/[a-zA-Z0-9_-]{46}$/);

  await step("download it", async () => {
    assert.strictEqual((await client.downloadData(skylink)).toString(), text);
    await client.downloadFile(inFolder("note.txt"), skylink);
    assert.strictEqual(fs.readFileSync(inFolder("note.txt"), "utf8"), text);
    const { data, portalUrl } = await client.getFileContent(skylink);
    assert.deepStrictEqual([data, portalUrl], [text, portal]);
  });

  await step("its metadata", async () => {
    const { metadata } = await client.getMetadata(skylink);
    assert.deepStrictEqual([metadata.filename, metadata.length], ["note.txt", text.length]);
  });

  await step("a dry run gives the same skylink", async () => {
    assert.strictEqual(await client.uploadData(text, "note.txt", { dryRun: true }), skylink);
  });

  await step("upload and download a file of 20 MiB", async () => {
    const bytes = crypto.randomBytes(20 << 20);
    fs.writeFileSync(inFolder("large.bin"), bytes);
    const large = await client.uploadFile(inFolder("large.bin"));
    await client.downloadFile(inFolder("large.back"), large);
    assert.strictEqual(sha256(fs.readFileSync(inFolder("large.back"))), sha256(bytes));
  });

  await step("upload 100 MiB over tus in two parts", async () => {
    const bytes = crypto.randomBytes(100 << 20);
    fs.writeFileSync(inFolder("tus.bin"), bytes);
    // Its tus requests carry no key: from this machine they need none.
    const large = await client.uploadFile(inFolder("tus.bin"), { chunkSizeMultiplier: 1 });
    assert.match(large, /^sia:\/\/[a-zA-Z0-9_-]{46}$/);
    await client.downloadFile(inFolder("tus.back"), large);
    assert.strictEqual(sha256(fs.readFileSync(inFolder("tus.back"))), sha256(bytes));
  });

  await step("upload a folder", async () => {
    fs.mkdirSync(inFolder("site/below"), { recursive: true });
    fs.writeFileSync(inFolder("site/index.html"), "<h1>home</h1>");
    fs.writeFileSync(inFolder("site/below/a.json"), '{"a":1}');
    const site = await client.uploadDirectory(inFolder("site"), { tryFiles: ["index.html"], errorPages: { 404: "/index.html" } });
    assert.strictEqual((await client.getFileContent(site)).data, "<h1>home</h1>");
    assert.deepStrictEqual((await client.getFileContent(`${site}/below/a.json`)).data, { a: 1 });
    await client.downloadFile(inFolder("site.tar"), site, { format: "tar" });
    assert.ok(fs.readFileSync(inFolder("site.tar")).includes("<h1>home</h1>"));
  });

  const { publicKey, privateKey } = genKeyPairFromSeed(`a seed of ${Date.now()} ${Math.random()}`);
  for (const [name, db] of [["SkyDB", client.db], ["SkyDB v2", client.dbV2]]) {
    await step(`${name}: set, get and delete`, async () => {
      assert.strictEqual((await db.getJSON(publicKey, name)).data, null);
      for (const score of [1, 2]) {
        await db.setJSON(privateKey, name, { score });
        assert.deepStrictEqual((await db.getJSON(publicKey, name)).data, { score });
      }
      await db.deleteJSON(privateKey, name);
      assert.strictEqual((await db.getJSON(publicKey, name)).data, null);
    });
  }

  await step("a resolver skylink follows its entry", async () => {
    const resolver = await client.registry.getEntryLink(publicKey, "latest");
    for (const words of ["the first", "the second"]) {
      await client.db.setDataLink(privateKey, "latest", await client.uploadData(words, "latest.txt"));
      assert.strictEqual((await client.getFileContent(resolver)).data, words);
    }
  });

  await step("pin", async () => {
    assert.strictEqual((await client.pinSkylink(skylink)).skylink, skylink);
  });

  await step("no upload with a wrong key", async () => {
    const stranger = new SkynetClient(portal, { skynetApiKey: "0".repeat(64) });
    await assert.rejects(stranger.uploadData(text, "note.txt"), /401/);
  });
}

run(main);
