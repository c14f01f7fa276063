"""Media to clips: gate and probe the file, decode it in a child process, turn its sound into log-mel.

Read in the order of the data: gate -> probe -> extract (video, audio, image; in the child) -> child -> decode -> clips.
Nothing here imports Ray, and nothing that the child needs imports torch.
"""
