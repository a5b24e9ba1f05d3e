"""What watches and steers: metrics, objectives, alerts, the fleet of worker processes."""
