package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
)

// Group is the parts of a program that run at the same time and end together.
// [NewGroup] makes it; [Group.Run] must be called, or [Group.Stop].
type Group struct {
	ctx    context.Context
	cancel context.CancelFunc
	failed chan error
	work   sync.WaitGroup
}

// NewGroup makes a group without parts.
func NewGroup() *Group {
	g := &Group{failed: make(chan error, 1)}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	return g
}

// Context is for parts that run until all is over, the drain included: it ends
// when shutdown has returned.
func (g *Group) Context() context.Context { return g.ctx }

// Go starts a part. If it fails the program ends; errors that say only that it
// was closed or cancelled are none.
func (g *Group) Go(name string, part func() error) {
	g.work.Go(func() {
		err := part()
		if err == nil || errors.Is(err, net.ErrClosed) || errors.Is(err, context.Canceled) {
			return
		}
		select {
		case g.failed <- fmt.Errorf("%s: %w", name, err):
		default: // one reason to end is enough
		}
	})
}

// Run waits until ctx ends or a part fails, shuts down with the context of
// [Abort], ends the group's context, and returns when every part has: nil, or
// the part's and the shutdown's errors.
func (g *Group) Run(ctx context.Context, shutdown func(context.Context) error) error {
	var err error
	select {
	case <-ctx.Done():
	case err = <-g.failed:
	}
	if e := shutdown(Abort(ctx)); e != nil {
		err = errors.Join(err, fmt.Errorf("not everything ended by itself, the rest was cut off: %w", e))
	}
	g.Stop()
	return err
}

// Stop ends the group's context and waits for the parts.
func (g *Group) Stop() {
	g.cancel()
	g.work.Wait()
}
