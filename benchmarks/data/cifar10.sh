#!/usr/bin/env bash
# What pretraining brings: 10,000 unlabelled CIFAR-10 images, then 2,000 labels, beside the same
# fine-tuning from scratch. The last line of each run tells its accuracy; runs lie in `runs/`.
#     bash benchmarks/data/cifar10.sh DIR [SEED [DECODER_DIM DECODER_DEPTH]]
set -euo pipefail
root=$1 seed=${2:-0} dim=${3:-64} depth=${4:-2}
vit="patch_size: 4, embed_dim: 128, depth: 6, num_heads: 4"
common=(--data.root "$root" --seed_everything "$seed" --trainer.precision bf16-mixed
  --trainer.logger.offline true --trainer.check_val_every_n_epoch 10 --model.warmup_epochs 5)

litcam fit --config pretrain_mae_cifar10.yaml "${common[@]}" --model.backbone_args "{$vit}" \
  --model.norm_pix_loss true --model.decoder_dim "$dim" --model.decoder_depth "$depth" \
  --model.lr 1.5e-3 --data.batch_size 128 --data.images_per_class 1000 --trainer.max_epochs 60
encoder=$(ls -t runs/pretrain_mae_cifar10/version_*/checkpoints/encoder.safetensors | head -1)
for start in "$encoder" ""; do
  litcam fit --config finetune_cifar10.yaml "${common[@]}" --model.weights "$start" \
    --model.backbone_args "{img_size: 32, $vit, global_pool: avg}" --model.drop_path_rate 0.1 \
    --model.lr 2e-3 --data.batch_size 64 --data.images_per_class 200 \
    --data.crop_scale "[0.3, 1.0]" --trainer.max_epochs 40
done
