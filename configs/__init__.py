"""Presets: files whose get_config() returns the settings of a run. Copy one to make your own."""
