// node read.js GATEWAY ROOT: reads a folder from one gateway, every block checked, and prints hashes of what it read.
import { createHash } from 'node:crypto';
import { withHTTP } from '@helia/http';
import { createVerifiedFetch } from '@helia/verified-fetch';
import { fallbackRouter } from '@helia/fallback-router';
import { createHeliaLight } from 'helia';

const [gateway, root] = process.argv.slice(2);
const local = { allowInsecure: true, allowLocal: true };
const helia = withHTTP(createHeliaLight({}), { delegatedRouters: [], recursiveGateways: [gateway], ...local });
// Gateways are a fallback behind the main routers, and an empty list of those is waited for without end: so the gateway is
// a main router here.
const routed = fallbackRouter({ gateways: [gateway] });
helia.addRouter({
  name: 'gateway',
  capabilities: () => ['findProviders'],
  findProviders: (cid, options) => routed.findProviders(cid, options),
});
await helia.start();
const fetch = await createVerifiedFetch(helia);
const sha256 = (bytes) => createHash('sha256').update(new Uint8Array(bytes)).digest('hex');
const read = {};
for (const path of ['a.txt', 'dir/b.txt', 'large.bin']) {
  const answer = await fetch(`ipfs://${root}/${path}`);
  if (!answer.ok) {
    throw new Error(`${path}: ${answer.status}`);
  }
  read[path] = sha256(await answer.arrayBuffer());
}
const part = await fetch(`ipfs://${root}/large.bin`, { headers: { Range: 'bytes=1000000-1999999' } });
read.part = sha256(await part.arrayBuffer());
const missing = await fetch(`ipfs://${root}/nothing`);
read.missing = missing.ok ? 'read' : 'failed';
console.log(JSON.stringify(read));
await helia.stop();
process.exit(0);
