"""What every package uses: files, processes, configuration, padded batches."""
