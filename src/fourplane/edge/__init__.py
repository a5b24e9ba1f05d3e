"""What lets the world in: listeners, the HTTP server, the gateway, caches near the user."""
