//go:build !linux

package main

import (
	"context"
	"fmt"
	"io"
	"runtime"

	"github.com/rhizome-tunnel/rhizome/examples/internal/cli"
)

func main() { cli.Main("ha", run) }

func run(context.Context, []string, io.Writer, io.Writer) error {
	return fmt.Errorf("hosts are made of linux's network namespaces: not on %s", runtime.GOOS)
}
