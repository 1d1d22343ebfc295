"""LangChain's wrapper: it sends no response_format and reads only `url`."""

import json
import os

from langchain_community.utilities.dalle_image_generator import DallEAPIWrapper

wrapper = DallEAPIWrapper(
    base_url=os.environ["BASE_URL"], api_key=os.environ["API_KEY"], model="dall-e-3", max_retries=0
)
print(json.dumps({"url": wrapper.run("a red cat")}))
