// Uses a portal with skynet-js as a web page of another origin does: node check.js PORTAL_URL API_KEY
// Prints a line for each step; the first that fails ends it.
"use strict";

const assert = require("assert");
const { JSDOM } = require("jsdom");

const { step, run } = require("../steps.cjs");

const [portal, key] = process.argv.slice(2);

// What skynet-js takes from the browser. Requests of the page are checked against CORS as a browser checks them.
const page = new JSDOM("", { url: "http://app.localhost:3000/" });
global.window = page.window;
for (const name of ["document", "location", "localStorage", "Blob", "File", "FormData", "FileReader", "XMLHttpRequest", "Event"]) {
  global[name] = page.window[name];
}
Object.defineProperty(global, "navigator", { value: page.window.navigator, configurable: true });

const { SkynetClient, genKeyPairFromSeed } = require("skynet-js");

const client = new SkynetClient(portal, { skynetApiKey: key });

async function main() {
  const text = `written at ${Date.now()}`;
  const file = new File([text], "note.txt", { type: "text/plain" });
  const { skylink } = await step("upload a file", () => client.uploadFile(file));
  assert.match(skylink, /^sia:\/\/[a-zA-Z0-9_-]{46}$/);

  await step("download it", async () => {
    const { data, contentType, portalUrl, skylink: said } = await client.getFileContent(skylink);
    assert.strictEqual(data, text);
    assert.match(contentType, /^text\/plain/);
    assert.strictEqual(said, skylink);
    assert.strictEqual(portalUrl, portal);
  });

  await step("its metadata", async () => {
    const { metadata } = await client.getMetadata(skylink);
    assert.strictEqual(metadata.filename, "note.txt");
    assert.strictEqual(metadata.length, text.length);
  });

  await step("upload a folder", async () => {
    const files = {
      "index.html": new File(["<h1>home</h1>"], "index.html", { type: "text/html" }),
      "a.json": new File(['{"a":1}'], "a.json", { type: "application/json" }),
    };
    const uploaded = await client.uploadDirectory(files, "site", { tryFiles: ["index.html"] });
    const home = await client.getFileContent(uploaded.skylink);
    assert.strictEqual(home.data, "<h1>home</h1>");
    const inner = await client.getFileContent(`${uploaded.skylink}/a.json`);
    assert.deepStrictEqual(inner.data, { a: 1 });
  });

  const { publicKey, privateKey } = genKeyPairFromSeed(`a seed of ${Date.now()} ${Math.random()}`);
  await step("SkyDB: nothing yet", async () => {
    assert.strictEqual((await client.db.getJSON(publicKey, "score")).data, null);
  });
  for (const score of [1, 2]) {
    await step(`SkyDB: set and get ${score}`, async () => {
      await client.db.setJSON(privateKey, "score", { score });
      assert.deepStrictEqual((await client.db.getJSON(publicKey, "score")).data, { score });
    });
  }

  await step("a resolver skylink follows its entry", async () => {
    await client.db.setDataLink(privateKey, "latest", skylink);
    const resolver = await client.registry.getEntryLink(publicKey, "latest");
    assert.strictEqual((await client.getFileContent(resolver)).data, text);
    const second = await client.uploadFile(new File(["the second"], "second.txt", { type: "text/plain" }));
    await client.db.setDataLink(privateKey, "latest", second.skylink);
    assert.strictEqual((await client.getFileContent(resolver)).data, "the second");
  });

  await step("a subscriber is told the entry, and what replaces it", async () => {
    // Subscriptions are for pages of the portal's own origin.
    const own = new JSDOM("", { url: `${portal}/` });
    const url = new URL(await client.registry.getEntryUrl(publicKey, "watched"));
    const datakey = url.searchParams.get("datakey");
    await client.db.setDataLink(privateKey, "watched", skylink);
    const socket = new own.window.WebSocket(`${portal.replace(/^http/, "ws")}/skynet/registry/subscription`);
    const told = [];
    await new Promise((resolve, reject) => {
      socket.onerror = () => reject(new Error("the subscription broke"));
      socket.onopen = () => socket.send(JSON.stringify({ action: "subscribe", pubkey: `ed25519:${publicKey}`, datakey }));
      socket.onmessage = ({ data }) => {
        told.push(JSON.parse(data));
        if (told.length === 2) resolve();
        else client.db.setDataLink(privateKey, "watched", skylink).catch(reject);
      };
    });
    socket.close();
    assert.ok(told.every((entry) => entry.error === "" && entry.datakey === datakey), JSON.stringify(told));
    assert.strictEqual(told[1].revision, told[0].revision + 1);
  });

  await step("pin", async () => {
    assert.strictEqual((await client.pinSkylink(skylink)).skylink, skylink);
  });

  await step("no upload without a key", async () => {
    const stranger = new SkynetClient(portal);
    await assert.rejects(stranger.uploadFile(file), /40[13]/);
  });
}

run(main);
