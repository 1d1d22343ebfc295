// OpenAI's client for Node: openai.mjs generate|edit|edit-stream|stream|variation [FILE...]
import fs from "node:fs";
import path from "node:path";
import OpenAI, { toFile } from "openai";

const [operation, ...files] = process.argv.slice(2);
const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: process.env.API_KEY, maxRetries: 0 });
const typed = (file) => toFile(fs.createReadStream(file), path.basename(file), { type: "image/png" });
const images = (answer) => answer.data.map((image) => image.b64_json);

async function run() {
  switch (operation) {
    case "generate": {
      const { data, response } = await client.images
        .generate({ model: "gpt-image-1", prompt: "a red cat", n: 2, size: "1024x1024" })
        .withResponse();
      return { images: images(data), headers: Object.fromEntries(response.headers) };
    }
    case "edit": {
      const inputs = await Promise.all(files.map(typed));
      const image = inputs.length === 1 ? inputs[0] : inputs;
      return { images: images(await client.images.edit({ model: "gpt-image-1", image, prompt: "add a hat" })) };
    }
    case "edit-stream": {
      const image = fs.createReadStream(files[0]);
      return { images: images(await client.images.edit({ model: "gpt-image-1", image, prompt: "add a hat" })) };
    }
    case "variation": {
      const image = await typed(files[0]);
      const answer = await client.images.createVariation({ image, n: 1, size: "256x256", response_format: "b64_json" });
      return { images: images(answer) };
    }
    case "stream": {
      const stream = await client.images.generate({
        model: "gpt-image-1",
        prompt: "a red cat",
        stream: true,
        partial_images: 2,
      });
      const events = [];
      for await (const event of stream) events.push(event);
      return { types: events.map((event) => event.type), images: events.map((event) => event.b64_json) };
    }
  }
  throw new Error(`unknown operation ${operation}`);
}

console.log(JSON.stringify(await run()));
