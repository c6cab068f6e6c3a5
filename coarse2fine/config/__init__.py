"""Settings: their schema, and how YAML files and overrides become them."""
