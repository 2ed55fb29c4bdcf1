"""The tiny base: every size and length of its pretraining. About 75 minutes on two cores.

python -m evoid_jax.pretrain --config=configs/pretrain_tiny.py --out=evoid_jax/assets/tiny
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    cfg = ml_collections.ConfigDict()
    cfg.seed = 0
    cfg.videos = 6000  # rendered once, shared by every stage
    cfg.frames, cfg.size, cfg.fps = 9, 64, 8
    cfg.faulty = 0.5  # share of the clips that the transformer imitates which have a fault

    cfg.text = dict(d_model=64, d_kv=16, num_heads=4, d_ff=128, num_layers=2, vocab_size=768)
    cfg.text_train = dict(steps=500, batch=128, lr=2e-3, muon_lr=0.02, warmup=50)

    cfg.vae = dict(base_dim=8, dim_mult=(1, 2, 6, 10), num_res_blocks=1, z_dim=16)
    cfg.vae_train = dict(
        steps=5000, whole_steps=150, batch=6, crop=32, lr=3e-3, muon_lr=0.05, warmup=50, kl=1e-4
    )

    cfg.wan = dict(
        num_attention_heads=4,
        attention_head_dim=32,
        ffn_dim=512,
        num_layers=6,
        vace_layers=(0, 2, 4),
    )
    flow = dict(batch=32, lr=2e-3, muon_lr=0.02, warmup=50, text_dropout=0.1, shift=3.0)
    cfg.t2v_train = dict(flow, steps=2800)
    cfg.vace_train = dict(flow, steps=800, lr=1e-3)
    return cfg
