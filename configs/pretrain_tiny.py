"""The tiny base: every size and length of its pretraining. Five hours on two cores.

python -m evoid_jax.pretrain --config=configs/pretrain_tiny.py --out=evoid_jax/assets/tiny
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    cfg = ml_collections.ConfigDict()
    cfg.seed = 0
    cfg.save_every = 100  # steps; a training that is killed goes on from its last save
    cfg.frames, cfg.size, cfg.fps = 9, 64, 8
    cfg.videos = 20000  # that the main blocks see, one of each person
    cfg.pairs = 60000  # that the VACE blocks see, one of each of other people
    cfg.faulty = 0.3  # share of the clips that the transformer imitates which have a fault
    # What is found beside photos (evoid_jax/world/found.py): a share that sits still for them, and
    # how far people look from their photo, of each attribute's range, where they move.
    cfg.posed, cfg.drift = 0.2, 0.1

    cfg.text = dict(d_model=64, d_kv=16, num_heads=4, d_ff=128, num_layers=2, vocab_size=768)
    cfg.text_train = dict(steps=500, batch=128, lr=2e-3, muon_lr=0.02, warmup=50, ema=0.99)

    # Wide where pictures are small: a latent stands for 768 values, and matmuls are cheap there.
    cfg.vae = dict(base_dim=8, dim_mult=(1, 2, 8, 14), num_res_blocks=1, z_dim=16)
    cfg.coder = ""  # folder of a finished model whose VAE is taken; "" trains one
    cfg.vae_videos = 8000  # of the same
    cfg.kl = 3e-4
    coder = dict(lr=3e-3, warmup=50, ema=0.995)
    cfg.stills_train = dict(coder, steps=500, batch=32, muon_lr=0.05)
    cfg.vae_train = dict(coder, steps=4500, batch=8, muon_lr=0.03)
    cfg.decoder_train = dict(coder, steps=4800, batch=8, muon_lr=0.03)

    cfg.wan = dict(
        num_attention_heads=4,
        attention_head_dim=40,
        ffn_dim=640,
        num_layers=6,
        vace_layers=(0, 2, 4),
    )
    flow = dict(batch=64, muon_lr=0.02, warmup=100, text_dropout=0.1, shift=3.0, ema=0.999)
    cfg.t2v_train = dict(flow, steps=3300, lr=2e-3)
    cfg.vace_train = dict(flow, steps=4500, lr=1e-3)
    return cfg
