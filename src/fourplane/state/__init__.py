"""Where data lives: contracts, the embedded engines behind them, and the big engines behind the same contracts."""
