"""The engines that run as servers, each behind the same contract as its embedded twin."""
