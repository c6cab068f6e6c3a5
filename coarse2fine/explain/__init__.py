"""What a network looks at: Grad-CAM at a named layer, for networks of any kind and for trained models over volumes."""
