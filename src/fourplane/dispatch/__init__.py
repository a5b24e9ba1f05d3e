"""Driver positions to paid trips: S2 index, road ETA, matching, offers, trips, fares."""
