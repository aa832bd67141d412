"""Edge-cache-friendly Server-Sent Events gateway on a Redis-backed ring."""
