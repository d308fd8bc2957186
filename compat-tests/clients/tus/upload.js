// node upload.js ENDPOINT FILE CHUNK_BYTES PARALLEL: uploads a file and tells on standard output what happens, a JSON value
// on each line: {"sent": N}, {"resumed": N} for each offset that the gateway told, {"done": URL, "skylink": ..}.

import { createReadStream } from 'node:fs'
import { basename } from 'node:path'
import { Upload } from 'tus-js-client'

const [endpoint, file, chunkBytes, parallel] = process.argv.slice(2)
const tell = (value) => process.stdout.write(JSON.stringify(value) + '\n')

const upload = new Upload(createReadStream(file), {
  endpoint,
  chunkSize: Number(chunkBytes),
  parallelUploads: Number(parallel),
  // Longer than a gateway takes to start.
  retryDelays: Array(60).fill(500),
  metadata: { filename: basename(file), filetype: 'application/octet-stream' },
  onProgress: (sent) => tell({ sent }),
  onAfterResponse: (request, response) => {
    if (request.getMethod() === 'HEAD') tell({ resumed: Number(response.getHeader('upload-offset')) })
  },
  onError: (error) => {
    console.error(String(error))
    process.exitCode = 1
  },
  onSuccess: async () => {
    const head = await fetch(upload.url, { method: 'HEAD', headers: { 'Tus-Resumable': '1.0.0' } })
    tell({ done: upload.url, skylink: head.headers.get('skynet-skylink') })
  },
})
upload.start()
