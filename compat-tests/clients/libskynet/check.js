// Uses a portal with libskynet, which computes skylinks itself and checks every answer: node check.js PORTAL_URL
// Prints a line for each step; the first that fails ends it.

import assert from "node:assert";
import {
  blake2b,
  blake2bMerkleRoot,
  b64ToBuf,
  bufToB64,
  bufToHex,
  deriveRegistryEntryID,
  ed25519Sign,
  encodePrefixedBytes,
  encodeU64,
  generateSeedPhraseDeterministic,
  hexToBuf,
  parseJSON,
  parseSkylinkBitfield,
  progressiveFetch,
  resolverLink,
  seedPhraseToSeed,
  skylinkV1Bitfield,
  taggedRegistryEntryKeys,
  validateSkyfileMetadata,
  verifyDownload,
  verifyDownloadResponse,
  verifyRegistrySignature,
  verifyResolverLinkProofs,
} from "libskynet";

import { step } from "../steps.cjs";

const SECTOR_BYTES = 1 << 22;

// It speaks https to portals by name; the one under test has no certificate.
const address = process.argv[2].replace(/^http:\/\//, "");
const plainFetch = globalThis.fetch;
globalThis.fetch = (url, options) => plainFetch(String(url).replace(/^https:/, "http:"), options);

/** The value of libskynet's pairs of values and an error. */
function good(pair) {
  const error = pair[pair.length - 1];
  assert.strictEqual(error, null);
  return pair.length === 2 ? pair[0] : pair.slice(0, -1);
}

function joined(...parts) {
  return Uint8Array.from(Buffer.concat(parts.map((part) => Uint8Array.from(part))));
}

function text(words) {
  return new TextEncoder().encode(words);
}

/** Asks the portal; the answer must satisfy `verify`. The second portal of the list does not exist. */
async function ask(endpoint, options, verify) {
  const asked = await progressiveFetch(endpoint, options, [address, "127.0.0.1:1"], verify);
  // Its last log line repeats whole bodies.
  assert.ok(asked.success && asked.portal === address, asked.logs?.[0]);
  return asked.response;
}

/** Makes a skyfile here and restores it there, which must give the skylink that was computed here. */
async function upload(filename, bytes) {
  // Written as this version checks it; portals read the names of fields in any case.
  const metadata = { Filename: filename, Length: bytes.length };
  assert.strictEqual(validateSkyfileMetadata(metadata), null);
  const json = text(JSON.stringify(metadata));
  const number = (value) => good(encodeU64(BigInt(value)));
  const cipher = Uint8Array.from([0, 0, 0, 0, 0, 0, 0, 1]);
  const layout = joined([1], number(bytes.length), number(json.length), number(0), [0, 0], cipher, new Uint8Array(64));
  const used = layout.length + json.length + bytes.length;
  const sector = joined(layout, json, bytes, new Uint8Array(SECTOR_BYTES - used));
  const raw = joined(good(skylinkV1Bitfield(BigInt(used))), good(blake2bMerkleRoot(sector)));
  const skylink = bufToB64(raw);
  const strings = ["Skyfile Backup\n", "v1.5.5\n", skylink].map((words) => joined(number(words.length), text(words)));
  const answer = await ask("/skynet/restore", { method: "post", body: joined(...strings, sector) }, async (response) => {
    const told = await response.json();
    return told.skylink === skylink ? null : `another skylink: ${JSON.stringify(told)}`;
  });
  assert.strictEqual(answer.status, 200);
  return skylink;
}

/** Reads the base sector and checks it against the skylink. */
async function download(skylink) {
  const raw = good(b64ToBuf(skylink));
  const found = { fileData: new Uint8Array(0), err: null };
  await ask(`/skynet/trustless/basesector/${skylink}`, null, (response) => verifyDownloadResponse(response, raw, found));
  assert.strictEqual(found.err, null);
  return Buffer.from(found.fileData);
}

/**
 * The same through a resolver skylink, whose proof is checked first. By hand, since this version reads the proof's revision
 * as a number, and then refuses it for being no BigInt.
 */
async function downloadResolved(skylink) {
  const response = await ask(`/skynet/trustless/basesector/${skylink}`, null, async ({ status }) =>
    status === 200 ? null : `status ${status}`,
  );
  const proof = JSON.parse(response.headers.get("skynet-proof"), (name, value) => (name === "revision" ? BigInt(value) : value));
  const resolved = good(verifyResolverLinkProofs(good(b64ToBuf(skylink)), proof));
  assert.strictEqual(bufToB64(resolved), response.headers.get("skynet-skylink"));
  const [version, offset, length] = good(parseSkylinkBitfield(resolved));
  assert.strictEqual(version, 1n);
  const [data] = good(verifyDownload(resolved.slice(2), offset, length, await response.arrayBuffer()));
  return Buffer.from(data);
}

async function readEntry(publicKey, datakey) {
  const target = `/skynet/registry?publickey=ed25519%3A${bufToHex(publicKey)}&datakey=${bufToHex(datakey)}`;
  const asked = await progressiveFetch(target, {}, [address], async (response) => {
    const told = good(parseJSON(await response.text()));
    const [data, signature] = [told.data, told.signature].map((hex) => good(hexToBuf(hex)));
    const checks = verifyRegistrySignature(publicKey, datakey, data, BigInt(told.revision), signature);
    return checks ? null : `the signature does not verify: ${JSON.stringify(told)}`;
  });
  if (!asked.success) {
    assert.strictEqual(asked.responsesFailed[0].status, 404, asked.logs[0]);
    return null;
  }
  const told = await asked.response.json();
  return { data: good(hexToBuf(told.data)), revision: BigInt(told.revision) };
}

async function writeEntry(keys, datakey, data, revision) {
  const signed = joined(datakey, good(encodePrefixedBytes(data)), good(encodeU64(revision)));
  const entry = {
    publickey: { algorithm: "ed25519", key: Array.from(keys.publicKey) },
    datakey: bufToHex(datakey),
    revision: Number(revision),
    data: Array.from(data),
    signature: Array.from(good(ed25519Sign(blake2b(signed), keys.secretKey))),
  };
  await ask("/skynet/registry", { method: "post", body: JSON.stringify(entry) }, async (response) =>
    response.status === 204 ? null : `status ${response.status}`,
  );
}

const words = Buffer.from(`written at ${Date.now()}`);
const skylink = await step("upload", () => upload("note.txt", words));
const large = Buffer.alloc(3 << 20, words);
const second = await step("upload 3 MiB", () => upload("dir/large.bin", large));

await step("trustless download", async () => {
  assert.deepStrictEqual(await download(skylink), words);
  assert.deepStrictEqual(await download(second), large);
});

await step("nothing under another skylink", async () => {
  const raw = good(b64ToBuf(skylink));
  raw[9] ^= 1;
  const asked = await progressiveFetch(`/skynet/trustless/basesector/${bufToB64(raw)}`, null, [address], async () => null);
  assert.deepStrictEqual([asked.success, asked.responsesFailed[0].status], [false, 404]);
});

const seed = good(seedPhraseToSeed(good(generateSeedPhraseDeterministic(`a seed of ${Date.now()} ${Math.random()}`))));
const [keys, datakey] = good(taggedRegistryEntryKeys(seed, "a key", "a name"));

await step("registry: nothing, then what was written", async () => {
  assert.strictEqual(await readEntry(keys.publicKey, datakey), null);
  for (const revision of [0n, 1n, 7n]) {
    const data = text(`at ${revision}`);
    await writeEntry(keys, datakey, data, revision);
    const entry = await readEntry(keys.publicKey, datakey);
    assert.deepStrictEqual([Buffer.from(entry.data), entry.revision], [Buffer.from(data), revision]);
  }
});

await step("trustless download by resolver skylinks, of one hop and of two", async () => {
  const linkOf = (name) => good(resolverLink(good(deriveRegistryEntryID(keys.publicKey, name))));
  const [first, outer] = [new Uint8Array(32).fill(1), new Uint8Array(32).fill(2)];
  await writeEntry(keys, first, good(b64ToBuf(skylink)), 1n);
  await writeEntry(keys, outer, good(b64ToBuf(linkOf(first))), 1n);
  assert.deepStrictEqual(await downloadResolved(linkOf(first)), words);
  assert.deepStrictEqual(await downloadResolved(linkOf(outer)), words);
  await writeEntry(keys, first, good(b64ToBuf(second)), 2n);
  assert.deepStrictEqual(await downloadResolved(linkOf(outer)), large);
});
