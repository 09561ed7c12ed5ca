"""What a pretrained encoder is measured with."""
