"""The counted statistics: from rows and labels to the class moments of a layer.

From the ground up:

plain, labels         arrays and labels as people pass them, checked: one row and one class number each
linalg, npy_header    symmetric products and norms of rows; the header of a .npy array
sums, namespace       the update on a device, written once, and the operations that it needs of a framework
sampling, sketch      hashes of row numbers, and the count sketch that stands in for a wide scatter
groups                what each of 16 groups of rows holds, from which intervals come
host_sums             the same sums of rows in NumPy, in place, by tiles that stay in a cache
arithmetic, rounding  sums become moments and two moments become one; what float32 sums may have lost
consistency           what the moments of any data satisfy
fields                the fields of ClassMoments as plain data
moments, accumulate   ClassMoments, which everything else exchanges, and Accumulator, for a stream of NumPy rows
stored, state_file    the form of moments in a file, and files under a checksum
head, undefined       the linear classifier on top of a layer; why a value is undefined
"""
