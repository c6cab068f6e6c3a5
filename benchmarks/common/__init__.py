"""Cases, models and machines that are measured."""
