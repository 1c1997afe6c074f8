"""Presets: tables of "section.key": value over the defaults in config.py."""

HUMANML3D = {
    "data.dataset": "humanml3d", "train.cache_latents": 10,
    "train_vae.steps": 1_100_000, "train_vae.batch_size": 128,
    "train_diffusion.steps": 550_000, "train_diffusion.lr": 1e-4,
    "train_evaluator.steps": 30_000, "train_evaluator.batch_size": 128,
    "train.eval_every": 10_000, "train.save_every": 5_000, "train.sample_every": 50_000,
}
KIT = HUMANML3D | {
    "data.dataset": "kit", "data.skeleton": "kit", "data.fps": 12.5, "data.min_length": 24,
    "train_vae.steps": 220_000, "train_diffusion.steps": 220_000,
}
ACTION = {  # the published action model: ACTOR's VAE, a 15-layer denoiser, 1000 DDPM steps
    "data.skeleton": "smpl", "data.min_length": 60, "data.max_length": 100_000,
    "data.max_frames": 60, "data.unit_length": 60,
    "vae.arch": "actor", "vae.num_layers": 6,
    "denoiser.condition": "action", "denoiser.num_layers": 15, "denoiser.text_encoded_dim": 256,
    "diffusion.sampler": "ddpm", "diffusion.num_inference_steps": 1000,
    "diffusion.clip_sample": True, "train_evaluator.steps": 5000,
}
SMALL = {  # for two CPU cores; docs/results.md has what each choice buys in that budget
    "data.balance_actions": True, "train.cache_latents": 4,
    "vae.latent_dim": 128, "vae.ff_size": 512, "vae.num_layers": 5, "vae.latent_size": 2,
    "vae.dropout": 0.0, "vae.attention_dropout": 0.0, "vae.position_embedding": "sine",
    "vae.mlp_dist": True, "vae.logvar_bias": -4.0, "vae.cosines": 64, "vae.cosine_span": 196,
    "vae.joints_loss": "distance", "vae.lambda_joint": 0.05, "vae.lambda_velocity": 10.0,
    "vae.lambda_acceleration": 10.0, "vae.lambda_energy": 0.2, "vae.lambda_spectrum": 0.1,
    "vae.sharpen_from": 0.5, "text.kind": "scratch", "text.vectors": True,
    "denoiser.latent_dim": 128, "denoiser.ff_size": 512, "denoiser.num_layers": 5,
    "denoiser.dropout": 0.0, "denoiser.attention_dropout": 0.0, "denoiser.max_positions": 256,
    "denoiser.text_encoded_dim": 128, "denoiser.normalize_latents": True,
    "denoiser.final_linear": True, "denoiser.length_token": True, "denoiser.principal": 2,
    "diffusion.prediction_type": "v_prediction", "diffusion.guidance_scale": 1.5,
    "train_vae.steps": 4000, "train_vae.batch_size": 16, "train_vae.optimizer": "muon",
    "train_vae.lr": 2e-3, "train_vae.warmup": 200,
    "train_diffusion.steps": 3000, "train_diffusion.batch_size": 128,
    "train_diffusion.optimizer": "muon", "train_diffusion.draws": 4,
    "train_diffusion.lr": 4e-3, "train_diffusion.warmup": 200,
    "train_distill.steps": 5000, "train_distill.batch_size": 32, "train_distill.lr": 2e-4,
    "train_distill.warmup": 100, "train_distill.ema": 0.99,
    "evaluator.width": 128, "evaluator.layers": 2, "evaluator.embed_dim": 64,
    "train_evaluator.steps": 1500, "train_evaluator.batch_size": 128,
    "train_evaluator.lr": 1e-3, "train_evaluator.warmup": 100,
}
TOY = SMALL | {  # sequences of two actions and counts need more latent tokens and more layers
    "data.dataset": "toy", "data.max_frames": 120, "vae.latent_size": 4, "vae.cosines": 36,
    "vae.cosine_span": 120, "vae.lambda_velocity": 2.0, "vae.lambda_acceleration": 5.0,
    "vae.lambda_energy": 0.02, "vae.lambda_bones": 0.2, "vae.lambda_head": 0.4,
    "vae.sharpen_from": 0.4, "vae.lambda_kl_late": 0.06, "denoiser.length_dropout": 0.2,
    "text.width": 192, "text.layers": 4, "text.word_dropout": 0.03, "text.row_dropout": 0.1,
    "denoiser.arch": "modulated", "denoiser.text_encoded_dim": 192, "denoiser.num_layers": 5,
    "denoiser.latent_dim": 256, "denoiser.ff_size": 744, "denoiser.principal": 4,
    "diffusion.guidance_scale": 2.0,
    "train_vae.batch_size": 32, "train_vae.steps": 8000, "train_diffusion.steps": 12_000,
    "train_vae.max_logit": 100.0, "train_diffusion.max_logit": 100.0,
    "train_diffusion.draws": 8, "train_diffusion.length_weight": 0.03, "train.cache_latents": 1,
}
NOVAE = {  # no VAE: diffusion straight on frames, the condition through cross-attention
    "vae.arch": "none", "train.cache_latents": 0, "denoiser.principal": 0,
    "denoiser.arch": "trans_dec", "denoiser.skip_connect": False,
    "denoiser.normalize_latents": False, "denoiser.length_dropout": 0.0,
    "diffusion.sampler": "ddpm", "diffusion.num_inference_steps": 1000,
}
PAPER = {  # the published optimiser: a constant rate, no clipping, no average of weights
    f"{stage}.{key}": value for stage in ("train_vae", "train_diffusion") for key, value in
    {"lr": 1e-4, "warmup": 0, "schedule": "constant", "grad_clip": 0.0, "ema": 0.0}.items()
}

PRESETS = {
    "toy": TOY,
    "small": SMALL,
    "vae_humanml3d": HUMANML3D | {"train.stage": "vae"},
    "mld_humanml3d": HUMANML3D,
    "novae_humanml3d": HUMANML3D | NOVAE | {"denoiser.latent_dim": 512,
                                            "train.stage": "diffusion"},
    "vae_kit": KIT | {"train.stage": "vae"},
    "mld_kit": KIT,
    "mld_humanact12": ACTION | {"data.dataset": "humanact12", "denoiser.num_actions": 12},
    "mld_uestc": ACTION | {"data.dataset": "uestc", "data.fps": 30.0, "denoiser.num_actions": 40},
}
DATASET_PRESETS = {"toy": "toy", "humanml3d": "mld_humanml3d", "kit": "mld_kit",
                   "humanact12": "mld_humanact12", "uestc": "mld_uestc"}
MODULES = {  # the network parts swapped as a set, as the published code's module folders do
    "mld": {"vae.arch": "encoder_decoder", "denoiser.arch": "trans_enc",
            "denoiser.skip_connect": True},
    "novae": NOVAE,
    "humanact12": {key: value for key, value in ACTION.items() if not key.startswith("data.")},
}
RECIPES = {"ours": {}, "paper": PAPER}
