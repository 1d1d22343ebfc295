// Models to test a worker with, around any worker: `<provider>-refuse`, `-fail-429`, `-slow-<ms>`, `-large`, `-idle`.
//
// `imagegate conform` asks for them, to see what no worker does unasked. docs/writing-a-worker.md says what each
// promises. Serve them for tests only.

import { setTimeout as sleep } from "node:timers/promises";

import grpc from "@grpc/grpc-js";
import protobuf from "protobufjs";

const ENDINGS = ["refuse", "fail-*", "slow-*", "large", "idle"];
const PADDING_BYTES = 64_000_000;

// What gRPC's richer errors are made of.
const rpc = protobuf.parse(`syntax = "proto3";
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message Any { string type_url = 1; bytes value = 2; }
  message RetryInfo { Duration retry_delay = 1; }
  message Duration { int64 seconds = 1; }`).root;
const bytes = (type, fields) => Buffer.from(rpc.lookupType(type).encode(fields).finish());

const plays = {
  async *refuse({ failure }) {
    throw failure(grpc.status.FAILED_PRECONDITION, "this prompt is refused, as its model says");
  },

  // A rate limit, with the time after which the router may come back.
  async *fail({ failure }) {
    const code = grpc.status.RESOURCE_EXHAUSTED;
    const message = "too many requests, as the model says";
    const value = bytes("RetryInfo", { retryDelay: { seconds: 1 } });
    const details = [{ typeUrl: "type.googleapis.com/google.rpc.RetryInfo", value }];
    const metadata = new grpc.Metadata();
    metadata.set("grpc-status-details-bin", bytes("Status", { code, message, details }));
    throw failure(code, message, metadata);
  },

  // Waits as long as somebody waits for it.
  async *slow({ worker, request, gone, value }) {
    await sleep(Number(value), undefined, { signal: gone });
    yield* worker.generate(request, gone);
  },

  async *large({ worker, request, gone, chunks, pngChunk }) {
    const [parts, rest] = [[], []];
    for await (const event of worker.generate(request, gone)) {
      if (event.image_chunk) parts.push(event.image_chunk.data);
      else rest.push(event);
    }
    yield* chunks(0, padded(Buffer.concat(parts), pngChunk));
    yield rest.at(-1);
  },

  async *idle({ worker, request, gone, others, failure }) {
    if (others > 0) throw failure(grpc.status.UNAVAILABLE, `working at ${others} other calls`);
    yield* worker.generate(request, gone);
  },
};

// A worker with these models besides its own. Each works like the provider's first model, but for its name.
export function testable(worker, tools) {
  let working = 0;
  return {
    describe() {
      const { providers } = worker.describe();
      for (const { name, models } of providers) {
        models.push(...ENDINGS.map((ending) => ({ ...models[0], model: `${name}-${ending}` })));
      }
      return { providers };
    },

    async *generate(request, gone) {
      const others = working++;
      try {
        const { provider, image } = request;
        const [, kind, value] = image.model?.match(`^${provider}-([a-z]+)(?:-(.+))?$`) ?? [];
        const play = plays[kind];
        if (!play) return yield* worker.generate(request, gone);
        image.model = "";
        yield* play({ ...tools, worker, request, gone, value, others });
      } finally {
        working--;
      }
    },
  };
}

// The same PNG with 64 MB that mean nothing, in a chunk that decoders skip.
function padded(png, pngChunk) {
  const end = png.length - 12; // the IEND chunk
  return Buffer.concat([png.subarray(0, end), pngChunk("paDd", Buffer.alloc(PADDING_BYTES)), png.subarray(end)]);
}
