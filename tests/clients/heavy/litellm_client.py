"""LiteLLM as a client of an OpenAI-like server: `litellm_client.py generate`, `litellm_client.py edit FILE`."""

import json
import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import litellm

where = {"api_base": os.environ["BASE_URL"], "api_key": os.environ["API_KEY"], "max_retries": 0}
if sys.argv[1] == "generate":
    answer = litellm.image_generation(
        model="openai/gpt-image-1", prompt="a red cat", n=1, size="1024x1024", **where
    )
else:
    with open(sys.argv[2], "rb") as image:
        answer = litellm.image_edit(model="openai/gpt-image-1", prompt="add a hat", image=image, **where)
print(json.dumps({"images": [image.b64_json for image in answer.data]}))
