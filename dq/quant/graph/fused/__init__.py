"""What a prepared graph runs in one pass: functions together with the quantizers around them."""
