"""What every plane needs: the four seams to the outside world, errors, ids, money, configuration, lifecycle, telemetry."""
