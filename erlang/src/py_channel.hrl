%% What goes to the node in one message. With its headers a batch stays below one fragment.
-define(MAX_BATCH, 1024).
-define(MAX_BATCH_BYTES, 49152).
