"""The parts of an OpenAI-compatible endpoint that need no server: requests, media rules, responses, the token cache."""
