package connect

import "syscall"

// portable maps the numbers of Winsock to the names that package syscall
// invents for Windows and that no system call ever returns.
func portable(errno syscall.Errno) syscall.Errno {
	switch errno {
	case 10013: // WSAEACCES
		return syscall.EACCES
	case 10047: // WSAEAFNOSUPPORT
		return syscall.EAFNOSUPPORT
	case 10049: // WSAEADDRNOTAVAIL
		return syscall.EADDRNOTAVAIL
	case 10050: // WSAENETDOWN
		return syscall.ENETDOWN
	case 10051: // WSAENETUNREACH
		return syscall.ENETUNREACH
	case 10053: // WSAECONNABORTED
		return syscall.ECONNABORTED
	case 10054: // WSAECONNRESET
		return syscall.ECONNRESET
	case 10060: // WSAETIMEDOUT
		return syscall.ETIMEDOUT
	case 10061: // WSAECONNREFUSED
		return syscall.ECONNREFUSED
	case 10064: // WSAEHOSTDOWN
		return syscall.EHOSTDOWN
	case 10065: // WSAEHOSTUNREACH
		return syscall.EHOSTUNREACH
	}
	return errno
}
