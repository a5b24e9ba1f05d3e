"""Studio file to player: encoding ladder, packaging, origin, CDN, playback."""
