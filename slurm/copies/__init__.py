"""What a job runs: copies of the code and of its configs, so that later edits change nothing."""
