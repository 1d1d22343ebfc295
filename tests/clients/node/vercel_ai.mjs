// The Vercel AI SDK: vercel_ai.mjs gpt-image|dall-e-3|compatible | edit FILE
import fs from "node:fs";
import { experimental_generateImage, generateImage } from "ai";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";

const [operation, file] = process.argv.slice(2);
const where = { baseURL: process.env.BASE_URL, apiKey: process.env.API_KEY };
const generate = generateImage ?? experimental_generateImage;
const openai = createOpenAI(where);
const settings = { n: 2, size: "1024x1024", maxRetries: 0, prompt: "a red cat" };

let answer;
switch (operation) {
  case "gpt-image":
    answer = await generate({ ...settings, model: openai.image("gpt-image-1") });
    break;
  case "dall-e-3":
    answer = await generate({ ...settings, model: openai.image("dall-e-3") });
    break;
  case "compatible": {
    const provider = createOpenAICompatible({ name: "imagegate", ...where });
    answer = await generate({ ...settings, model: provider.imageModel("gpt-image-1") });
    break;
  }
  case "edit":
    answer = await generate({
      model: openai.image("gpt-image-1"),
      maxRetries: 0,
      prompt: { text: "add a hat", images: [fs.readFileSync(file)] },
    });
    break;
  default:
    throw new Error(`unknown operation ${operation}`);
}
console.log(JSON.stringify({ images: answer.images.map((image) => image.base64) }));
