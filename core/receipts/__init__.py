"""What synthetic rows are, in a form that anybody can check: receipts, their signatures."""
