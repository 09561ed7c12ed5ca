"""Raw dataset on disk in, prepared dataset on disk out; and the phantoms that stand in for the raw data."""
