"""Stable Diffusion 1.5 and SDXL without ComfyUI: diffusers' networks under ComfyUI's conventions.

From a file to a picture::

    weights ─▶ layout ─▶ config ─▶ load ─┬▶ CLIP (tokens, text, encoder)  ─▶ CONDITIONING ─┐
    (tensors)  (names)   (sizes)         ├▶ Model (model, sampling, lora) ─▶ sample ◀──────┤
                                         ├▶ ControlNet (control) ──────────▶ guidance ◀────┘
                                         └▶ VAE (vae)                       (samplers, schedules)

What is ComfyUI's here: the noise, the sigmas, the structure of CONDITIONING and LATENT, guidance, areas and masks, the
weights of words in a prompt. So one workflow file gives one picture in both. What is diffusers' here: U-Net, VAE and
ControlNet. Nothing in this package is a node (``engine.core.generation`` has those) and nothing downloads.
"""
