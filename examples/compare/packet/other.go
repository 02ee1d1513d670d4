//go:build !linux

package main

import (
	"fmt"
	"os"
	"runtime"
)

func main() {
	fmt.Fprintln(os.Stderr, "packet: network namespaces are linux's: not on", runtime.GOOS)
	os.Exit(1)
}
