"""The only place that imports ComfyUI."""
