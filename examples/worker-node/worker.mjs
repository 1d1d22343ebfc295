// A provider for imagegate in one file: it paints stripes.
//
// It shows everything that proto/imagegate/v1/worker.proto asks of a worker: Describe says what the provider can
// do, Generate carries out one call. It has no retries, no routing and no size rules of its own: the router has
// fitted every request to Describe's answer before it comes here.
//
//     node worker.mjs 127.0.0.1:50062
//
// With --conform it also has the models that `imagegate conform` tests refusals and slowness with.

import { createHash, randomInt } from "node:crypto";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import zlib from "node:zlib";

import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";
import { HealthImplementation } from "grpc-health-check";

const PROTO = fileURLToPath(new URL("../../proto", import.meta.url));
const SERVICE = "imagegate.v1.WorkerService";
const CHUNK_BYTES = 256 * 1024;
const deflate = promisify(zlib.deflate);

const definition = protoLoader.loadSync("imagegate/v1/worker.proto", {
  includeDirs: [PROTO],
  keepCase: true,
  enums: String,
  longs: Number, // seeds are below 2^53: the record says no max_seed, which means 2^32 - 1
  oneofs: true,
});

// A failure as gRPC carries it; worker.proto lists which code means what.
function failure(code, details, metadata) {
  return Object.assign(new Error(details), { code, details, metadata });
}

const stripes = {
  // What the provider can do. The router asks now and then, and trusts the answer.
  describe() {
    const model = {
      model: "stripes-1",
      operations: ["OPERATION_GENERATE"],
      max_n: 4,
      size: { free: { multiple_of: 8, min_side: 64, max_side: 2048 } },
      max_prompt_chars: 1000,
      formats: ["IMAGE_FORMAT_PNG"],
      parameters: [{ name: "seed" }],
      prices: [{ item: "image", usd: 0.001 }],
    };
    // Keyless: it needs no credential. With one, it would come in request.upstream.credential.
    return { providers: [{ name: "stripes", models: [model], keyless: true }] };
  },

  // One call: progress while it lasts, the images in chunks, then what there is to say about them.
  async *generate({ provider, image }, gone) {
    if (provider !== "stripes") {
      throw failure(grpc.status.INVALID_ARGUMENT, `this worker does not serve "${provider}"`);
    }
    if (image.model && image.model !== "stripes-1") {
      throw failure(grpc.status.NOT_FOUND, `there is no model "${image.model}"`);
    }
    if (image.prompt?.includes("forbidden")) {
      throw failure(grpc.status.FAILED_PRECONDITION, "this prompt is not allowed"); // a refusal of the content
    }
    const { width = 1024, height = 1024 } = image.size?.dimensions ?? {};
    const seed = image.seed ?? randomInt(2 ** 32);
    const count = image.n || 1;

    const painted = [];
    for (let index = 0; index < count; index++) {
      if (gone.aborted) return; // cancelled, or the deadline has passed: nobody waits any more
      painted.push(await paint(image.prompt ?? "", seed + index, width, height));
      yield { progress: { fraction: painted.length / count, state: "painting" } };
    }
    for (const [image_index, data] of painted.entries()) yield* chunks(image_index, data);
    const images = painted.map((_, index) => ({
      format: "IMAGE_FORMAT_PNG",
      width,
      height,
      seed: seed + index,
      finish_reason: "FINISH_REASON_STOP",
    }));
    yield { done: { images } };
  },
};

function* chunks(image_index, data) {
  for (let start = 0; start < data.length; start += CHUNK_BYTES) {
    yield { image_chunk: { image_index, data: data.subarray(start, start + CHUNK_BYTES) } };
  }
}

// A PNG whose colours and stripes follow from prompt and seed.
async function paint(prompt, seed, width, height) {
  const digest = createHash("sha256").update(`${prompt}|${seed}`).digest();
  const row = Buffer.alloc(1 + width * 3); // the first byte: the row is not filtered
  for (let x = 0; x < width; x++) {
    const colour = (Math.floor(x / (8 + digest[6] / 4)) % 2) * 3;
    digest.copy(row, 1 + x * 3, colour, colour + 3);
  }
  const header = Buffer.from([0, 0, 0, 0, 0, 0, 0, 0, 8, 2, 0, 0, 0]); // 8 bits, RGB
  header.writeUInt32BE(width, 0);
  header.writeUInt32BE(height, 4);
  const pixels = await deflate(Buffer.alloc(row.length * height, row));
  const magic = Buffer.from("\x89PNG\r\n\x1a\n", "latin1");
  return Buffer.concat([magic, pngChunk("IHDR", header), pngChunk("IDAT", pixels), pngChunk("IEND", Buffer.alloc(0))]);
}

function pngChunk(kind, data) {
  const body = Buffer.concat([Buffer.from(kind, "latin1"), data]);
  const [length, checksum] = [Buffer.alloc(4), Buffer.alloc(4)];
  length.writeUInt32BE(data.length);
  checksum.writeUInt32BE(zlib.crc32(body));
  return Buffer.concat([length, body, checksum]);
}

// Sends a generator's events, no faster than they are taken, and stops it when the caller goes away.
async function send(call, worker) {
  const gone = new AbortController();
  call.on("cancelled", () => gone.abort());
  try {
    for await (const event of worker.generate(call.request, gone.signal)) {
      if (!call.write(event)) await once(call, "drain", { signal: gone.signal });
    }
    call.end();
  } catch (error) {
    if (gone.signal.aborted) return;
    call.emit("error", error.code ? error : failure(grpc.status.INTERNAL, "painting failed"));
  }
}

let worker = stripes;
if (process.argv.includes("--conform")) {
  const { testable } = await import("./conformance.mjs");
  worker = testable(stripes, { chunks, failure, pngChunk });
}
const address = process.argv.slice(2).find((argument) => argument !== "--conform") ?? "127.0.0.1:50062";
const server = new grpc.Server();
server.addService(grpc.loadPackageDefinition(definition).imagegate.v1.WorkerService.service, {
  Describe: (_call, done) => done(null, worker.describe()),
  Generate: (call) => send(call, worker),
});
new HealthImplementation({ "": "SERVING", [SERVICE]: "SERVING" }).addToServer(server);
const port = await promisify(server.bindAsync.bind(server))(address, grpc.ServerCredentials.createInsecure());
console.log(`stripes listens on ${address.replace(/:\d+$/, "")}:${port}`);
