package packet

import "time"

func (k *kernelDevice) setReadDeadline(t time.Time) error { return k.file.SetReadDeadline(t) }
