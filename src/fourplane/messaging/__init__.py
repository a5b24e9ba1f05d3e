"""XMPP clients to delivered messages: an actor per user, routing, presence, offline store."""
