//go:build !windows

package connect

import "syscall"

func portable(errno syscall.Errno) syscall.Errno { return errno }
