"""What a number of users would take: capacity, machines, storage, cost, availability, and when to move on."""
