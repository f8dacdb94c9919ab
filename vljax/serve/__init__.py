"""One process that answers over HTTP, as OpenAI's chat completions do, and its web page."""
