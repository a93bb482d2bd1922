"""llama.cpp: its process, its plan, and what it needs beside OpenAI's dialect."""
