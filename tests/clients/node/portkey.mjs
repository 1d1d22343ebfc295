// Portkey's client for Node: portkey.mjs generate | edit FILE
import fs from "node:fs";
import { Portkey } from "portkey-ai";
import { toFile } from "openai";

const [operation, file] = process.argv.slice(2);
const config = operation === "generate" ? "pc-sdxl-dalle" : "pc-openai";
const portkey = new Portkey({ baseURL: process.env.BASE_URL, apiKey: process.env.API_KEY, config });

let answer;
if (operation === "generate") {
  answer = await portkey.images.generate({
    model: "stable-diffusion-v1-6",
    prompt: "a red cat",
    size: "1024x1024",
    response_format: "b64_json",
  });
} else {
  const image = await toFile(fs.createReadStream(file), "a.png", { type: "image/png" });
  answer = await portkey.images.edit({ model: "gpt-image-1", image, prompt: "add a hat" });
}
console.log(
  JSON.stringify({ images: answer.data.map((image) => image.b64_json), headers: answer.getHeaders?.() ?? {} }),
);
