"""What makes parts call, find and survive each other: actors, supervision, ownership, outbox, accounts, payments."""
