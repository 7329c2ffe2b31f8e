"""Headless: runs ComfyUI's workflow files without ComfyUI, from the command line or over HTTP."""
